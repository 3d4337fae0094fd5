"""A plugin that talks, and leaves."""

import sys

sys.stdout.write("thank you for choosing mvw-loud\n")
sys.exit("goodbye")
