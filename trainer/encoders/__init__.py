"""The user encoder, which turns a history into a user vector, and the item vectors that training starts from."""
