"""Testbeds: finding one, and what is added to DomainBed."""
