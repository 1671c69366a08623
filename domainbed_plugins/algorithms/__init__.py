"""Algorithms for DomainBed and for the embedded testbed."""
