"""What results say: leaderboards, paired tests, published numbers."""
