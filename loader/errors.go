package loader

// An InputError is the user's to mend: a file, a flag or a text that cannot be
// used. The command line turns it into exit code 2.
type InputError struct {
	Message string
	Hint    string // what to try next; may be empty
}

func (e *InputError) Error() string { return e.Message }
