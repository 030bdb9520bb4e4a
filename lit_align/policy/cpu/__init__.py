"""Code that only a CPU needs: attention by rows, and memory that is kept between steps."""
