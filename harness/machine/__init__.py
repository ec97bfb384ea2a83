"""What a process uses of its machine: device, memory, time, versions."""
