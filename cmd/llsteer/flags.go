package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// groupAnnotation names the heading under which --help shows a flag.
const groupAnnotation = "group"

// addFlags defines flags under a heading of --help.
func addFlags(cmd *cobra.Command, heading string, define func(*pflag.FlagSet)) {
	flags := pflag.NewFlagSet(heading, pflag.ContinueOnError)
	flags.SortFlags = false
	define(flags)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Annotations == nil {
			f.Annotations = map[string][]string{}
		}
		f.Annotations[groupAnnotation] = []string{heading}
	})
	cmd.Flags().SortFlags = false
	cmd.Flags().AddFlagSet(flags)
	flags.VisitAll(func(f *pflag.Flag) {
		if c, enumerated := f.Value.(interface{ choices() []string }); enumerated && c.choices() != nil {
			// the only errors are a flag that is not there, and a second function for it
			_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(c.choices(), cobra.ShellCompDirectiveNoFileComp))
		}
	})
}

// completeFiles has completion offer the files with these endings for a flag.
func completeFiles(flags *pflag.FlagSet, name string, endings ...string) {
	// the only error is a flag that is not there
	_ = flags.SetAnnotation(name, cobra.BashCompFilenameExt, endings)
}

// A number is a flag's finite number: pflag's own lets NaN and infinity pass.
type number struct {
	value    *float64
	min, max float64
}

func numberVar(flags *pflag.FlagSet, p *float64, name string, value, min, max float64, usage string) {
	*p = value
	flags.Var(&number{p, min, max}, name, usage)
}

func (n *number) Type() string { return "NUMBER" }

func (n *number) String() string { return strconv.FormatFloat(*n.value, 'g', -1, 64) }

func (n *number) Set(s string) error {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return fmt.Errorf("not a finite number")
	}
	if !(v >= n.min && v <= n.max) {
		return fmt.Errorf("not %s", between(n.min, n.max))
	}
	*n.value = v
	return nil
}

func between(min, max float64) string {
	switch {
	case math.IsInf(max, 1) && min == math.SmallestNonzeroFloat64:
		return "above 0"
	case math.IsInf(max, 1):
		return fmt.Sprintf("at least %v", min)
	case min == math.SmallestNonzeroFloat64:
		return fmt.Sprintf("above 0 and at most %v", max)
	}
	return fmt.Sprintf("from %v to %v", min, max)
}

// A count is a flag's whole number in a range.
type count struct {
	value    *int
	min, max int
}

func countVar(flags *pflag.FlagSet, p *int, name, short string, value, min, max int, usage string) {
	*p = value
	flags.VarP(&count{p, min, max}, name, short, usage)
}

func (c *count) Type() string { return "N" }

func (c *count) String() string { return strconv.Itoa(*c.value) }

func (c *count) Set(s string) error {
	v, err := strconv.Atoi(s)
	switch {
	case err != nil:
		return fmt.Errorf("not a whole number")
	case v < c.min || v > c.max && c.max == math.MaxInt:
		return fmt.Errorf("not at least %d", c.min)
	case v > c.max:
		return fmt.Errorf("not from %d to %d", c.min, c.max)
	}
	*c.value = v
	return nil
}

// A choice is a flag with an enumerated value, which completion offers.
type choice struct {
	value  *string
	values []string
}

func choiceVar(flags *pflag.FlagSet, p *string, name string, values []string, usage string) {
	flags.Var(&choice{p, values}, name, usage)
}

func (c *choice) choices() []string { return c.values }

func (c *choice) Type() string { return strings.Join(c.values, "|") }

func (c *choice) String() string { return *c.value }

func (c *choice) Set(s string) error {
	if !slices.Contains(c.values, s) {
		return fmt.Errorf("not one of %s", strings.Join(c.values, ", "))
	}
	*c.value = s
	return nil
}

// rewriteGPULayers makes --gpu-layers of llama.cpp's -ngl, which pflag would
// read as -n with the value "gl". What another flag takes as its value stays.
func rewriteGPULayers(root *cobra.Command, args []string) []string {
	cmd, _, err := root.Find(args)
	if err != nil {
		cmd = root
	}
	rewritten := slices.Clone(args)
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == "--":
			return rewritten
		case args[i] == "-ngl" || strings.HasPrefix(args[i], "-ngl="):
			rewritten[i] = "--gpu-layers" + strings.TrimPrefix(args[i], "-ngl")
			if args[i] == "-ngl" {
				i++
			}
		case takesNext(cmd, args[i]):
			i++
		}
	}
	return rewritten
}

// takesNext says whether an argument is a flag whose value is the next one.
func takesNext(cmd *cobra.Command, arg string) bool {
	needsValue := func(f *pflag.Flag) bool { return f != nil && f.NoOptDefVal == "" }
	switch {
	case strings.HasPrefix(arg, "--"):
		return !strings.Contains(arg, "=") && needsValue(cmd.Flag(arg[2:]))
	case strings.HasPrefix(arg, "-"):
		for i, letter := range arg[1:] { // -qp TEXT, -pTEXT
			f := cmd.Flags().ShorthandLookup(string(letter))
			if f == nil {
				f = cmd.InheritedFlags().ShorthandLookup(string(letter))
			}
			if needsValue(f) {
				return i+2 == len(arg)
			}
		}
	}
	return false
}

// setHelp gives every command a --help whose flags stand in groups, each ending
// in its default, with the example last.
func setHelp(root *cobra.Command) {
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		about := cmd.Long
		if about == "" {
			about = cmd.Short
		}
		var b strings.Builder
		fmt.Fprintf(&b, "%s\n\nUsage:\n  %s\n", about, cmd.UseLine())
		if cmd.HasAvailableSubCommands() {
			b.WriteString("\nCommands:\n")
			for _, sub := range cmd.Commands() {
				if sub.IsAvailableCommand() || sub.Name() == "help" {
					fmt.Fprintf(&b, "  %-12s %s\n", sub.Name(), sub.Short)
				}
			}
		}
		for _, group := range groups(cmd) {
			fmt.Fprintf(&b, "\n%s:\n%s", group.Name(), group.FlagUsagesWrapped(width()))
		}
		if cmd.HasExample() {
			fmt.Fprintf(&b, "\nExample:\n%s\n", cmd.Example)
		}
		fmt.Fprint(cmd.OutOrStdout(), b.String())
	})
	root.SetUsageFunc(func(cmd *cobra.Command) error {
		fmt.Fprintf(cmd.ErrOrStderr(), "Usage: %s\n", cmd.UseLine())
		return nil
	})
}

// groups are copies of a command's flags for printing, in the order in which
// they were defined; those without a heading last.
func groups(cmd *cobra.Command) []*pflag.FlagSet {
	var all []*pflag.FlagSet
	add := func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		heading := "Output"
		if a := f.Annotations[groupAnnotation]; len(a) > 0 {
			heading = a[0]
		}
		i := slices.IndexFunc(all, func(g *pflag.FlagSet) bool { return g.Name() == heading })
		if i < 0 {
			g := pflag.NewFlagSet(heading, pflag.ContinueOnError)
			g.SortFlags = false
			all, i = append(all, g), len(all)
		}
		shown := *f
		shown.Value = shownValue{f.Value.Type()}
		shown.DefValue = ""
		if !strings.Contains(f.Usage, "(default") && !strings.Contains(f.Usage, ", default ") && !strings.Contains(f.Usage, "(required)") {
			shown.Usage += fmt.Sprintf(" (default %s)", shownDefault(f))
		}
		all[i].AddFlag(&shown)
	}
	cmd.NonInheritedFlags().VisitAll(add)
	cmd.InheritedFlags().VisitAll(add)
	return all
}

func shownDefault(f *pflag.Flag) string {
	switch f.DefValue {
	case "", "[]":
		return "none"
	}
	return f.DefValue
}

// A shownValue has the name of a flag's value and no default, which pflag
// would print in its own way.
type shownValue struct{ kind string }

func (shownValue) Set(string) error { return nil }
func (shownValue) String() string   { return "" }
func (v shownValue) Type() string   { return v.kind }

func width() int {
	if columns, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil && columns >= 60 {
		return columns
	}
	return 100
}
