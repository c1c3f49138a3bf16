"""What a trained model is worth: functions of arrays, returning numbers."""
