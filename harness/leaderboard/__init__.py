"""What results say: leaderboards, paired tests, numbers from papers."""
