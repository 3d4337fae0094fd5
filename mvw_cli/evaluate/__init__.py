"""`mvw eval`: public benchmarks answered under several withdrawals, and scored by rules."""
