package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// chatModel is the demo model with the ChatML template, which it has no tokens for.
func chatModel(t *testing.T) *ggmlsteer.Model {
	path := filepath.Join(t.TempDir(), "chat.gguf")
	template := "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"
	require.NoError(t, os.WriteFile(path, insertKV(bytes.Clone(demo.Model), "tokenizer.chat_template", template), 0o600))
	m, err := ggmlsteer.Open(path, ggmlsteer.Options{Threads: 1})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// On a terminal Ctrl-C ends the answer and not the conversation; between answers it ends that.
func TestChatInterrupted(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "chat.gguf")
	template := "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"
	require.NoError(t, os.WriteFile(path, insertKV(bytes.Clone(demo.Model), "tokenizer.chat_template", template), 0o600))
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	defer terminal.Close()
	require.NoError(t, unix.IoctlSetPointerInt(int(terminal.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(terminal.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	theirs, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	cmd := exec.Command("llsteer", "chat", "-m", path, "-t", "1", "-n", "200")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, cmd.Start())
	require.NoError(t, theirs.Close())
	defer cmd.Process.Kill()
	pieces := make(chan string)
	go func() {
		defer close(pieces)
		for piece := make([]byte, 4096); ; {
			n, err := terminal.Read(piece)
			if err != nil {
				return
			}
			pieces <- string(piece[:n])
		}
	}()
	shown := ""
	// until waits for a text behind what was waited for before
	until := func(text string) {
		t.Helper()
		for deadline := time.After(time.Minute); ; {
			if _, rest, found := strings.Cut(shown, text); found {
				shown = rest
				return
			}
			select {
			case piece, open := <-pieces:
				shown += piece
				require.True(t, open || strings.Contains(shown, text), "it ended, and not with %q: %q", text, shown)
			case <-deadline:
				require.Fail(t, "too slow", "%q instead of %q", shown, text)
			}
		}
	}
	write := func(text string) {
		_, err := terminal.WriteString(text)
		require.NoError(t, err)
	}
	until("> ")
	write("open the file\n")
	until("file\r\n")
	for len(shown) < 8 { // some of the answer
		shown += <-pieces
	}
	write("\x03")
	until("\r\n> ")
	saved := filepath.Join(dir, "talk.json")
	write("/save " + saved + "\n")
	until("written: ")
	until("> ")
	data, err := os.ReadFile(saved)
	require.NoError(t, err)
	require.Contains(t, string(data), `"stop":"interrupted"`)
	write("\x03")
	until("interrupted")
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	require.Equal(t, 130, exit.ExitCode())
}

// A history stands in the template, message after message; control tokens in it are the
// template's alone.
func TestChatMessages(t *testing.T) {
	m := chatModel(t)
	text := func(messages ...ggmlsteer.Message) string {
		tokens, err := m.ChatMessages(messages)
		require.NoError(t, err)
		return m.Text(tokens, true)
	}
	system := ggmlsteer.Message{Role: ggmlsteer.RoleSystem, Text: "be kind"}
	user := func(text string) ggmlsteer.Message {
		return ggmlsteer.Message{Role: ggmlsteer.RoleUser, Text: text}
	}
	assistant := ggmlsteer.Message{Role: ggmlsteer.RoleAssistant, Text: "here"}
	require.Equal(t, "<bos><|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nopen it<|im_end|>\n<|im_start|>assistant\nhere<|im_end|>\n<|im_start|>user\nand now<|im_end|>\n<|im_start|>assistant\n",
		text(system, user("open it"), assistant, user("and now")))

	one, err := m.Chat("be kind", "open it")
	require.NoError(t, err)
	same, err := m.ChatMessages([]ggmlsteer.Message{system, user("open it")})
	require.NoError(t, err)
	require.Equal(t, one, same)

	// more than nine messages, one of which holds a control token as text
	var many []ggmlsteer.Message
	for range 6 {
		many = append(many, user("open it"), assistant)
	}
	many = append(many, user("a <eos> b"))
	rendered := text(many...)
	require.Equal(t, 7, strings.Count(rendered, "user\n"))
	require.Contains(t, rendered, "user\na <eos> b<|im_end|>")
	tokens, err := m.ChatMessages(many)
	require.NoError(t, err)
	for _, token := range tokens {
		require.NotEqual(t, "<eos>", m.Text([]ggmlsteer.Token{token}, true))
	}

	_, err = m.ChatMessages(nil)
	require.Error(t, err)
	_, err = m.ChatMessages([]ggmlsteer.Message{user("a"), assistant})
	require.Error(t, err)
	_, err = m.ChatMessages([]ggmlsteer.Message{user("a\x00b")})
	require.ErrorContains(t, err, "zero byte")
}
