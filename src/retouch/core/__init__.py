"""What every stage shares: errors, the configuration, the objects handed on, the run directory."""
