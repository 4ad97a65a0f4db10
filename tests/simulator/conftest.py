"""Tests of the simulator, which is for Linux: elsewhere there is nothing here to collect."""

import sys

collect_ignore_glob = ["*"] if sys.platform == "darwin" else []
