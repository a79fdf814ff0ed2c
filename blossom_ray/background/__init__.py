"""Runs without their terminal: the process, and watching it from another one."""
