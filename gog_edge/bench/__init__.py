"""Where every millisecond, megabyte and joule goes: scenarios, statistics, probes, peers, rooflines, reports."""
