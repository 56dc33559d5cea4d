"""Learn new classes of pictures, task after task, without the earlier pictures."""
