"""Everything that touches DomainBed, and the embedded testbed that speaks its interface."""
