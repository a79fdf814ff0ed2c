"""The tree of a scenario, which composes all options, and what is checked across sections."""
