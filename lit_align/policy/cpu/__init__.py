"""What only a CPU needs: its attention, and the memory that its steps keep."""
