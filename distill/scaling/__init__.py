"""How a number of merit depends on computing, size and data: laws that are fitted to the logs of runs, and what they advise."""
