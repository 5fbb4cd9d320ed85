"""Speed, memory, quality and paired statistics; imported as edgeft.benchmarks."""
