package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// jobFlags say what is optimized: what they have goes over the job file.
type jobFlags struct {
	model    modelFlags
	prompt   []string // of one example
	src, dst []string
	layer    string
	shared   bool
	start    string

	startSteering *loader.Steering // what start names, once it is read
}

func (p *program) optimize() *cobra.Command {
	var f jobFlags
	var out, reportPath, tracePath, plotPath string
	var precision precision
	var tensors, noRecipe, resume bool
	cmd := &cobra.Command{
		Use:   "optimize -m MODEL [JOB] -o OUT",
		Short: "find a steering by gradient descent",
		Long: `Finds the vector that, added to the residual stream at the input of a layer, makes
the "dst" completions of the examples likely and the "src" ones unlikely.

JOB is a YAML or JSON file; "demo" is that of the quickstart. Flags win over it.
Ctrl-C keeps the best that was found so far. The same command with --resume goes on
where a run was interrupted or killed.`,
		Example: `  cat > job.yaml <<END
  layer: 2
  lr: 0.03
  max_iters: 60
  examples:
    - prompt: "When you open the program,"
      src_completions: [" the main window shows the list of your files."]
      dst_completions: [" la ventana principal muestra la lista de sus archivos."]
  END
  llsteer optimize -m demo job.yaml -o spanish.gguf --report report.json
  llsteer generate -m demo -s spanish.gguf:0.9 --compare -p "To change the size of the window,"`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.FixedCompletions([]string{"yaml", "yml", "json"}, cobra.ShellCompDirectiveFilterFileExt),
		RunE: func(cmd *cobra.Command, args []string) error {
			began := time.Now()
			if out == "" {
				return badInput("", "--out is missing")
			}
			if tensors && tracePath == "" {
				return badInput("add --trace FILE", "--trace-tensors is for --trace")
			}
			job, err := p.job(cmd, &f, args)
			if err != nil {
				return err
			}
			job.Precision = precision.or(ggmlsteer.F32)
			if err := job.Validate(); err != nil {
				return err
			}
			outputs := map[string]string{"--out": out, "--report": reportPath, "--trace": tracePath, "--plot": plotPath, "--resume": out + stateEnding}
			if err := checkOutputs(outputs, append(args, f.model.path)...); err != nil {
				return err
			}
			m, err := p.open(cmd.Context(), &f.model)
			if err != nil {
				return err
			}
			defer m.Close()
			if err := f.startFits(m); err != nil {
				return err
			}
			kept, err := p.newKeeper(cmd.Context(), out, resume)
			if err != nil {
				return err
			}
			var picture descentPlot
			result, traceErr, err := p.findTraced(cmd.Context(), m, job, kept, tracePath, tensors, picture.step)
			if err != nil {
				return err
			}
			if noRecipe {
				result.Steering.Recipe = ""
			}
			if err := loader.Write(out, result.Steering); err != nil {
				return err
			}
			if traceErr != nil { // after what the run was for
				return traceErr
			}
			report := newReport(result, m.Info(), f.model.path, out, time.Since(began).Seconds())
			data, err := encodeJSON(report)
			if err != nil {
				return err
			}
			if reportPath != "" {
				if err := writeFile(reportPath, data); err != nil {
					return err
				}
			}
			if plotPath != "" {
				if err := writePlot(plotPath, picture.panels(result.Norms)); err != nil {
					return err
				}
			}
			if p.json {
				err = p.print(string(data))
			} else {
				err = p.print(summary(report))
			}
			if err != nil {
				return err
			}
			if result.Stop == optimize.StopInterrupted {
				p.note("llsteer: interrupted; %s holds the best that was found, and the same command with --resume goes on", out)
				return exitStatus(exitInterrupted)
			}
			return kept.remove()
		},
	}
	addFlags(cmd, "Output", func(flags *pflag.FlagSet) {
		flags.StringVarP(&out, "out", "o", "", "steering `FILE` to write (required)")
		completeFiles(flags, "out", "gguf")
		flags.StringVar(&reportPath, "report", "", "write the result as JSON to `FILE`")
		flags.StringVar(&tracePath, "trace", "", "write a line of JSON for each step to `FILE`")
		flags.BoolVar(&tensors, "trace-tensors", false, "with the vectors and gradients in --trace")
		flags.StringVar(&plotPath, "plot", "", "draw loss and norms of each step into `FILE`, as SVG")
		completeFiles(flags, "plot", "svg")
		flags.BoolVar(&resume, "resume", false, "go on where the same command was interrupted or killed; the state is OUT.state, and without one the run begins")
		flags.BoolVar(&noRecipe, "no-recipe", false, "leave the job out of the steering file")
	})
	f.add(cmd)
	addFlags(cmd, "Options, in place of the job's (none, auto: as if the job did not give them); in brackets the name in the formulas of docs/steering.md, and the default", addOptions)
	f.model.add(cmd)
	addFlags(cmd, "Model", func(flags *pflag.FlagSet) { addPrecision(flags, &precision, precisionF32) })
	return cmd
}

// add defines the flags of a job.
func (f *jobFlags) add(cmd *cobra.Command) {
	addFlags(cmd, "Example, in place of the job's (@FILE reads a file, @- standard input, @@ is an @)", func(flags *pflag.FlagSet) {
		flags.StringArrayVarP(&f.prompt, "prompt", "p", nil, "`TEXT` before the completions")
		flags.StringArrayVar(&f.src, "src", nil, "completion `TEXT` to make unlikely; repeatable")
		flags.StringArrayVar(&f.dst, "dst", nil, "completion `TEXT` to make likely; repeatable")
	})
	addFlags(cmd, "Steering", func(flags *pflag.FlagSet) {
		flags.StringVar(&f.layer, "layer", "", "`LAYERS` whose input is steered, from 0: 10, 3,7, 0-25 or all (default the job's)")
		flags.BoolVar(&f.shared, "shared", false, "one vector on all of them, in place of one each")
		flags.StringVar(&f.start, "start", "", "steering `FILE` to start from (default random)")
		completeFiles(flags, "start", "gguf")
	})
}

// addOptions defines a flag for every option of a job but the seed, which is a
// flag of every command.
func addOptions(flags *pflag.FlagSet) {
	for _, o := range optimize.OptionTable() {
		if o.Name == "seed" {
			continue
		}
		f := flags.VarPF(&optionFlag{option: o, text: o.Default}, flagOf(o), "", fmt.Sprintf("%s (%s, default %s)", o.Help, o.FormulaName(), o.Default))
		if o.Type == "bool" {
			f.NoOptDefVal = "true"
		}
	}
}

// flagOf is the name of an option's flag.
func flagOf(o optimize.Option) string { return strings.ReplaceAll(o.Name, "_", "-") }

// An optionFlag is a flag for an option. It keeps its text until there is a job.
type optionFlag struct {
	option optimize.Option
	text   string
}

func (f *optionFlag) Type() string {
	switch f.option.Type {
	case "bool":
		return "bool"
	case "choice":
		return strings.Join(f.option.Choices, "|")
	case "count":
		return "N"
	}
	return "NUMBER"
}

func (f *optionFlag) choices() []string { return f.option.Choices }

func (f *optionFlag) String() string { return f.text }

func (f *optionFlag) Set(text string) error {
	var scratch optimize.Options
	if err := f.option.Set(&scratch, text); err != nil {
		return err
	}
	f.text = text
	return nil
}

// job is the job file with the flags over it.
func (p *program) job(cmd *cobra.Command, f *jobFlags, args []string) (*optimize.Job, error) {
	job := &optimize.Job{Options: optimize.DefaultOptions()}
	if len(args) > 0 {
		data, err := readJobFile(args[0])
		if err != nil {
			return nil, err
		}
		if job, err = optimize.ReadJob(args[0], data); err != nil {
			return nil, err
		}
	}
	return job, p.overJob(cmd, f, job)
}

// overJob puts the flags that were given over a job.
func (p *program) overJob(cmd *cobra.Command, f *jobFlags, job *optimize.Job) error {
	given := cmd.Flags().Changed
	var err error
	if given("layer") {
		if job.Layers, err = optimize.ParseLayers(f.layer); err != nil {
			return fmt.Errorf("--layer: %w", err)
		}
	}
	if given("shared") {
		job.Shared = f.shared
	}
	if given("seed") {
		job.Seed = f.model.seed
	}
	cmd.Flags().Visit(func(given *pflag.Flag) {
		if o, isOption := given.Value.(*optionFlag); isOption && err == nil {
			err = o.option.Set(&job.Options, o.text)
		}
	})
	if err != nil {
		return err
	}
	if given("prompt") || given("src") || given("dst") {
		if job.Examples, err = p.example(f); err != nil {
			return err
		}
		job.Prompts, job.Src, job.Dst = nil, nil, nil
	}
	if given("start") {
		if err := f.readStart(job); err != nil {
			return err
		}
	}
	if given("chat") {
		job.Chat = f.model.chat
	}
	if given("system") {
		if job.System, err = p.text("--system", f.model.system); err != nil {
			return err
		}
		if job.System != "" && !job.Chat {
			return badInput("add --chat", "--system is for --chat")
		}
	}
	if given("parse-special") {
		job.ParseSpecial = f.model.parseSpecial
	}
	f.model.chat, f.model.system, f.model.parseSpecial = job.Chat, "", false // the job has it
	job.Context = f.model.ctxSize
	return nil
}

// example is the one that --prompt, --src and --dst give.
func (p *program) example(f *jobFlags) ([]optimize.Example, error) {
	if len(f.prompt) == 0 {
		return nil, badInput("", "--src and --dst need a --prompt before them")
	}
	if len(f.src)+len(f.dst) == 0 {
		return nil, badInput("", "--prompt needs a --src or --dst after it")
	}
	var e optimize.Example
	var err error
	if e.Prompt, err = p.onlyText("--prompt", f.prompt); err != nil {
		return nil, err
	}
	if e.Src, err = p.texts("--src", f.src); err != nil {
		return nil, err
	}
	e.Dst, err = p.texts("--dst", f.dst)
	return []optimize.Example{e}, err
}

// readStart takes the job's start from a steering file.
func (f *jobFlags) readStart(job *optimize.Job) error {
	s, err := loader.Read(f.start)
	if err != nil {
		return fmt.Errorf("--start: %w", err)
	}
	if s.Kind != job.Kind() {
		return badInput("", "--start: %s is a steering of kind %s, and this job finds one of kind %s", f.start, s.Kind, job.Kind())
	}
	f.startSteering = s
	job.Start = map[string]loader.Parameters{}
	if job.Shared && s.Shared {
		job.Start["shared"] = s.Params[0]
		return nil
	}
	// a job of fewer layers starts from theirs; one of other layers is refused for what it leaves out
	steers := func(layer int) bool { return slices.Contains(job.Layers.List, layer) }
	some := !job.Shared && slices.ContainsFunc(s.Layers, steers)
	for i, layer := range s.Layers {
		if !some || steers(layer) {
			job.Start[strconv.Itoa(layer)] = s.At(i)
		}
	}
	return nil
}

// startFits refuses a start that was found on another kind of model.
func (f *jobFlags) startFits(m *ggmlsteer.Model) error {
	if f.startSteering == nil {
		return nil
	}
	info := m.Info()
	if err := f.startSteering.CheckFits(info.Arch, info.Embd, info.Layers); err != nil {
		return fmt.Errorf("--start: %s: %w", f.start, err)
	}
	return nil
}

// readJobFile reads a job file, or the embedded job.
func readJobFile(path string) ([]byte, error) {
	if path == demoName {
		return demo.Job, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, badInput("", "cannot read the job %s: %s", path, reason(err))
	}
	defer f.Close()
	text, err := readText(f)
	if err != nil {
		return nil, badInput("", "cannot read the job %s: %s", path, reason(err))
	}
	return []byte(text), nil
}

// find optimizes, with progress; each, if not nil, gets every evaluation, too. kept, if not
// nil, keeps the state of the run, and says where it goes on.
func (p *program) find(ctx context.Context, m *ggmlsteer.Model, job *optimize.Job, kept *keeper, each func(optimize.Step)) (*optimize.Result, error) {
	progress := p.newProgress(job.MaxIters)
	var state []byte
	var keep optimize.Keep
	if kept != nil {
		state, keep = kept.found.Run, kept.keep
	}
	result, err := optimize.RunFrom(ctx, m, job, state, keep, func(s optimize.Step) {
		progress.step(s)
		if kept != nil {
			kept.step(s)
		}
		each(s)
	})
	progress.done()
	return result, err
}

// findTraced optimizes, and writes a trace if it has a path. The trace is written
// whole; where the run fails after its first evaluation it has the lines so far, to
// see why. An error of the trace alone does not keep a result from being used. A run that
// goes on gives the steps that are behind it to trace and each before its own.
func (p *program) findTraced(ctx context.Context, m *ggmlsteer.Model, job *optimize.Job, kept *keeper, path string, tensors bool, each func(optimize.Step)) (result *optimize.Result, traceErr, err error) {
	behind := kept.found.Steps
	all := func(s optimize.Step, each func(optimize.Step)) {
		for _, s := range behind {
			each(s)
		}
		behind = nil
		each(s)
	}
	if path == "" {
		result, err = p.find(ctx, m, job, kept, func(s optimize.Step) { all(s, each) })
		return result, nil, err
	}
	traceErr = loader.WriteFile(path, func(w io.Writer) error {
		t := &trace{w: w, tensors: tensors}
		if result, err = p.find(ctx, m, job, kept, func(s optimize.Step) { all(s, func(s optimize.Step) { t.step(s); each(s) }) }); err != nil && t.lines == 0 {
			return err
		}
		return t.err
	})
	if err == nil && result == nil { // the file could not even be begun
		err = traceErr
	}
	return result, traceErr, err
}

// summary is a report for people.
func summary(r report) string {
	norm := 0.0 // of the only vector, or the largest
	for _, n := range r.Norms {
		norm = max(norm, n)
	}
	what := "norm"
	if len(r.Norms) > 1 {
		what = "largest norm"
	}
	return fmt.Sprintf("%s: loss %.4f nats after %d steps (%s), %s %.4f, %.1f seconds\n", r.File, r.Loss, r.Iters, map[optimize.Stop]string{
		optimize.StopTarget: "target met", optimize.StopMaxIters: "step limit", optimize.StopStalled: "stalled", optimize.StopInterrupted: "interrupted",
	}[r.Stop], what, norm, r.Seconds)
}
