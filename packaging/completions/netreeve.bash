# bash completion for netreeve
_netreeve() {
    local cur prev verb='' word i
    cur=${COMP_WORDS[COMP_CWORD]}
    prev=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        # Behind -- stands somebody else's command.
        if [[ $word == -- ]]; then
            COMPREPLY=($(compgen -c -f -- "$cur"))
            return
        fi
        case $word in run | grant | doctor | list | help) [[ $verb ]] || verb=$word ;; esac
    done

    case $prev in
        --netdev)
            compopt -o nospace
            COMPREPLY=($(compgen -W 'tap,id= bridge,id= af-xdp,id= stream,id= hubport,id= vhost-user,id=' -- "$cur"))
            return ;;
        --device)
            compopt -o nospace
            COMPREPLY=($(compgen -W 'vhost-user,netdev= stream,netdev=' -- "$cur"))
            return ;;
        --object)
            compopt -o nospace
            COMPREPLY=($(compgen -W 'filter-dump,id=' -- "$cur"))
            return ;;
        --sandbox) COMPREPLY=($(compgen -W 'full landlock seccomp off' -- "$cur")); return ;;
        --config | --helper | --helper-socket | --dataplane | --pid) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --user) COMPREPLY=($(compgen -u -- "$cur")); return ;;
        --busy-poll | --workers | --socket-mode | --ready-fd) return ;;
    esac

    local ports='--netdev --config --helper-socket --helper'
    case $verb in
        '') COMPREPLY=($(compgen -W 'run grant doctor list help --help --version' -- "$cur")) ;;
        run) COMPREPLY=($(compgen -W "$ports --device --object --sandbox --busy-poll --workers --lock-mac --socket-mode --user --dataplane
            --ready-fd --pid --daemonize --json --stats --help --" -- "$cur")) ;;
        grant) COMPREPLY=($(compgen -W "$ports --help --" -- "$cur")) ;;
        doctor) COMPREPLY=($(compgen -W "$ports --dataplane --help" -- "$cur")) ;;
        list) COMPREPLY=($(compgen -W '--json --help' -- "$cur")) ;;
        help) COMPREPLY=($(compgen -W 'run grant doctor list' -- "$cur")) ;;
    esac
}
complete -F _netreeve netreeve
