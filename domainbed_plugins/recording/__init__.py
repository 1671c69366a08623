"""Recording coverage in DomainBed: what is asked for, at which layers, and the recorder that measures it."""
