"""What is measured, and how: arms in turns, phases, memory."""
