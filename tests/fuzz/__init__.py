"""Bad input for every option and every file that the command line reads.

`make fuzz` runs thousands of cases, each as the real command in a process of its own, without
root's rights and within limits of memory and time.
"""
