"""What a program will cost, read from its trace and from what a compiler made of it."""
