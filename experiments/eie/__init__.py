"""What EIE's storage and machine make of the paper's layers and of trained ones."""
