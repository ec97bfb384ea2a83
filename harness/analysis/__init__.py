"""What results say: leaderboards, paired tests, depth."""
