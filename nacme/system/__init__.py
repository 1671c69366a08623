"""Files, text and plug-ins: what lies between the package and the machine."""
