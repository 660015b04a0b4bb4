"""Programs for devices that this machine may lack: targets, compiled programs, their cost."""
