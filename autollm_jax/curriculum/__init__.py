"""What a policy learns from: pairs, changed copies, a synthetic prior, a teacher."""
