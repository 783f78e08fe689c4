"""Early stopping without a framework: the rule, its threshold, forecasts of many runs, and replays of finished ones."""
