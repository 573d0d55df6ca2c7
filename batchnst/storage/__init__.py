"""Reading and writing files at addresses, on disks and in object stores."""
