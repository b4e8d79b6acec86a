"""What a user would do instead of an edit, and the edit itself, behind one protocol."""
