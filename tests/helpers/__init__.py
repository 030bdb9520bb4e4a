"""What several test modules use: tiny models, fakes, processes of their own. No test module imports another."""
