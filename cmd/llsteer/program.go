package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"github.com/llsteer/llsteer/loader"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Exit codes, besides 0.
const (
	exitFailed      = 1   // during the work
	exitBadInput    = 2   // usage, or a file that cannot be used
	exitInterrupted = 130 // by a signal, as a shell counts them
)

// An exitStatus is an error whose story is told already: only the code is left.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// errInterrupted is for a command that takes Ctrl-C itself.
var errInterrupted = errors.New("interrupted")

// badInput is the user's to mend; see loader.InputError.
func badInput(hint, format string, args ...any) error {
	return &loader.InputError{Message: fmt.Sprintf(format, args...), Hint: hint}
}

// A program is one run of llsteer. Standard output is for results, standard
// error for everything else.
type program struct {
	json, quiet bool
	stdinRead   string // the argument that took standard input
	working     bool   // the command line was understood
}

// run is all of llsteer but the exit.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // so that a second signal ends the process at once

	p := &program{}
	root := p.root()
	root.SetArgs(rewriteGPULayers(root, args))
	root.SetContext(ctx)
	root.SetOut(os.Stdout)
	root.SetErr(os.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if !p.working {
		p.json = p.json || asksForJSON(args)
		err = asInputError(err)
	}
	return p.fail(ctx, err)
}

// fail tells what went wrong and returns the exit code.
func (p *program) fail(ctx context.Context, err error) int {
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	var input *loader.InputError
	message, hint, code := err.Error(), "", exitFailed
	switch {
	case errors.As(err, &input):
		hint, code = input.Hint, exitBadInput
	case ctx.Err() != nil || errors.Is(err, errInterrupted):
		message, code = "interrupted", exitInterrupted
	}
	if p.json {
		type failure struct {
			Message string `json:"message"`
			Hint    string `json:"hint"`
		}
		if p.printJSON(map[string]failure{"error": {message, hint}}) == nil {
			return code
		}
	}
	line := "llsteer: " + strings.Join(strings.FieldsFunc(message, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if hint != "" {
		line += " (" + hint + ")"
	}
	fmt.Fprintln(os.Stderr, line)
	return code
}

// asInputError is an error of the command line's parser as one of ours, without the
// names of Go functions.
func asInputError(err error) error {
	var input *loader.InputError
	if errors.As(err, &input) {
		return err
	}
	message := err.Error()
	var number *strconv.NumError
	if errors.As(err, &number) {
		message = strings.Replace(message, number.Error(), number.Err.Error(), 1)
	}
	return &loader.InputError{Message: message, Hint: "llsteer --help lists commands, llsteer COMMAND --help their flags"}
}

// asksForJSON is for a command line that could not be parsed.
func asksForJSON(args []string) bool {
	for _, a := range args {
		switch a {
		case "--":
			return false
		case "--json", "--json=true":
			return true
		}
	}
	return false
}

// printJSON writes one JSON object, or nothing.
func (p *program) printJSON(v any) error {
	data, err := encodeJSON(v)
	if err != nil {
		return err
	}
	return p.print(string(data))
}

// print writes to standard output.
func (p *program) print(text string) error {
	if _, err := os.Stdout.WriteString(text); err != nil {
		return fmt.Errorf("standard output: %w", err)
	}
	return nil
}

// encodeJSON gives one line. Texts stand as they are, < and > included; a
// number that is not finite is an error.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("the result has no JSON form: %w", err)
	}
	return b.Bytes(), nil
}

// note tells the user something on standard error that is not a result.
func (p *program) note(format string, args ...any) {
	if !p.quiet {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// name is how the user called this program, for lines to be pasted.
func name() string {
	if strings.Contains(os.Args[0], "/") {
		return os.Args[0]
	}
	return "llsteer"
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func (p *program) root() *cobra.Command {
	showVersion := false
	root := &cobra.Command{
		Use:   "llsteer COMMAND",
		Short: "steering vectors for local language models",
		Long: `llsteer finds steering vectors for a GGUF model by gradient descent, and generates
with them: tell it which completions of a prompt should become likely and which
unlikely, and it finds what to add to the residual stream of a layer.`,
		Example: `  llsteer quickstart
  llsteer optimize -m model.gguf job.yaml -o vector.gguf
  llsteer generate -m model.gguf -s vector.gguf:0.5 -p "Once upon a time"`,
		Args:          cobra.ArbitraryArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(*cobra.Command, []string) {
			p.working = true
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case showVersion && p.json:
				return p.printJSON(map[string]string{"version": version()})
			case showVersion:
				return p.print("llsteer " + version() + "\n")
			case len(args) > 0:
				return badInput("llsteer --help lists them", "there is no command %q", args[0])
			}
			cmd.SetOut(os.Stderr)
			cmd.Help()
			return exitStatus(exitBadInput)
		},
	}
	root.PersistentFlags().SortFlags = false
	root.PersistentFlags().BoolVar(&p.json, "json", false, "one JSON object on standard output, and nothing else there")
	root.PersistentFlags().BoolVarP(&p.quiet, "quiet", "q", false, "no progress, no notes")
	root.Flags().BoolVar(&showVersion, "version", false, "print the version")
	root.AddCommand(p.quickstart(), p.optimize(), p.generate(), p.logprob(), p.search(), p.sweep(), p.activations(), p.tokenize(), p.check(), p.inspect(),
		p.export(), p.importVector(), p.verify(), p.chat(), p.reproduce())
	setHelp(root)
	return root
}
