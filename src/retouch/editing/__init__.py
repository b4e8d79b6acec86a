"""The edit itself: a game between an adapter and discriminators over hidden states."""
