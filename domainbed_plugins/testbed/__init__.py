"""The embedded testbed: a small part of DomainBed's interface, on real images that ship inside scikit-learn.

The modules carry the names of the ``domainbed`` package, so that one training loop serves both:
``datasets``, ``algorithms``, ``networks``, ``hparams_registry``, ``lib.misc``.
"""
