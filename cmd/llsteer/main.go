// Command llsteer finds steering vectors for a GGUF model by gradient descent,
// and generates with them.
//
// Each command has a file of its own. What they share:
//
//	program.go    streams, errors and exit codes
//	flags.go      flags that several commands have, -ngl, help
//	text.go       text arguments (@FILE) and prompts
//	files.go      output files, written whole or not at all
//	progress.go   a bar on a terminal, lines elsewhere
//	report.go     the report and the trace of an optimization
package main

import "os"

func main() {
	os.Exit(run(os.Args[1:]))
}
