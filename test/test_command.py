"""Every command ends with an exit code, and says in one line why it failed."""

import argparse

import pytest

from crossview_localizer.command import run_command


def run(work, argv=(), **options):
    parser = argparse.ArgumentParser(prog='tool')
    parser.add_argument('--number', type=int, default=3)
    return run_command(parser, list(argv), work, **options)


def raising(error):
    def work(arguments):
        raise error
    return work


def test_work_gets_the_arguments_and_may_choose_the_exit_code():
    assert run(lambda arguments: None) == 0
    assert run(lambda arguments: arguments.number, ['--number', '5']) == 5


@pytest.mark.parametrize('error', [ValueError('too wide'), FileNotFoundError('too wide')])
def test_a_wrong_input_is_one_line_and_exit_code_2(error, capsys):
    assert run(raising(error)) == 2
    assert capsys.readouterr().err == 'tool: error: too wide\n'


def test_an_interrupted_command_says_what_is_left_and_ends_with_130(capsys):
    assert run(raising(KeyboardInterrupt()), interrupted='interrupted, nothing written') == 130
    assert capsys.readouterr().err == 'tool: interrupted, nothing written\n'


def test_an_error_that_no_user_can_mend_keeps_its_traceback(capsys):
    with pytest.raises(RuntimeError):
        run(raising(RuntimeError('a fault of the program')))
    assert run(raising(RuntimeError('a process failed')), more_errors=(RuntimeError,)) == 2
