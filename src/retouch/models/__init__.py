"""Models: loading, layout, the segment that an edit runs, adapters and generation."""
