"""Images that were made elsewhere: how they are kept, which is whose, what is wrong with them."""
