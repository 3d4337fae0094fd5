"""One page that shows a run: the answer token by token, and which patches each token looked at."""
