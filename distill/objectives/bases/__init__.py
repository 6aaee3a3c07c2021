"""What training methods have in common: the objective, the teacher, the student, and the kinds of method built on them."""
