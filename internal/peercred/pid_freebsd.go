package peercred

// pid is 0: the structure's field for it is younger than some systems in use,
// and not in x/sys.
func pid(fd int) int { return 0 }
