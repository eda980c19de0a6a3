"""Where the time, memory and energy go: scenarios, statistics, probes, peers, rooflines, reports."""
