"""Bytes at addresses: whole files or none, on disks and in object stores."""
