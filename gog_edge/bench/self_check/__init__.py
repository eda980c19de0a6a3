"""Does this machine's GPU compute what the CPU computes?"""
