"""Model cards, reports, exports, and the safety gate."""
