"""The contrast of an edit, measured on the base model before anything is trained.

An edit moves representations of source prompts to those of target prompts. If the base model does
not behave as desired on the target, or its target responses are as likely after the source prompt,
there is nothing to move towards, and the edit cannot work whatever the method.
"""
