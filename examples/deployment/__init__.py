"""A federation of three hospitals on real SuperLinks and SuperNodes; README.md is its runbook."""
