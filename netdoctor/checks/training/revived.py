"""What became of the trained model when it went on with a living learning rate, beside going on as it ended."""

AS_IT_ENDED, REVIVED = "revival/as it ended", "revival/a third of the highest rate"
FEWEST_STEPS = 40
